"""What is compared: Graftwork and what people would otherwise pick, each a file, all behind one protocol."""
