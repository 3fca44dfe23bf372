"""What a run leaves for people: tables on the terminal and one HTML page."""
