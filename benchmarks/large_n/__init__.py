"""Many subdomains, on as many ranks and on one."""
