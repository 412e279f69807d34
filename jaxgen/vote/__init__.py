"""Studies in which people judge images: one SQLite file, the web page on which they vote, and the results."""
