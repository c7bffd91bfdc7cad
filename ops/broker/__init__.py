"""The broker's configuration, the same for the embedded broker and for deployment."""
