"""What both directions of the wire share."""
