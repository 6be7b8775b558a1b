"""What scripts of several topics share."""
