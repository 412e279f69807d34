"""People judge images: studies in one SQLite file, the web page they vote on, and what the votes say."""
