"""What a program uses to hand in tasks and to get their results."""
