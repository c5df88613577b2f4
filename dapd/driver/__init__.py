"""Make and step jobs: the creator, the dispatcher, and one module for each kind of job."""
