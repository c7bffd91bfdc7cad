"""The shell that all pages share: layout, static files, catalogues, security headers."""
