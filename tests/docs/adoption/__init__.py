"""The shapes in which real projects use threads and the ORM, one in each file."""
