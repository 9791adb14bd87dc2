"""What a program that embeds Towline needs for its own tests."""
