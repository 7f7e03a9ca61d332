"""A tiny split model, trained by a list of jobs that the tests write."""
