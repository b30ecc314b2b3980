"""Files on disk to the records that a page shows."""
