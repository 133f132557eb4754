"""What survives a crash: tables, instance files, bundles."""
