"""What `manage.py` gets where the app is installed."""
