"""What a data set holds, in numbers, in words and as an HTML page."""
