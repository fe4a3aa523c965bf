"""A decoding step in process: kernel by kernel on the CPU, and against the roofline on a GPU."""
