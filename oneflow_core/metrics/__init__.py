"""What evaluation computes, as pure functions of numbers and texts."""
