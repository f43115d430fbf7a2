"""What a run tells about itself: its record, its progress bars and its HTML report."""
