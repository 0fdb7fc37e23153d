"""SpeechBrain Brain classes: what happens in a step, a validation, at the end."""
