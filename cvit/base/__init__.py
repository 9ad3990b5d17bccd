"""What every other package stands on: errors, arrays and numbers in, files out. Imports nothing of cvit."""
