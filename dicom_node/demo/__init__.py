"""The main job on one machine, with generated patients, to be looked at."""
