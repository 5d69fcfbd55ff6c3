"""Evacuation: every domain of this host goes elsewhere or to sleep, or finishes its jobs; and the way back."""
