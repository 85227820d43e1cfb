"""A server of an export over HTTP, and its page: `python -m drnet_runtime.serve DIR`."""
