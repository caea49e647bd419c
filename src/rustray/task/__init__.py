"""What a task is: its description, states, payload columns and encodings."""
