"""The pages in a real Chromium, before the real demo."""
