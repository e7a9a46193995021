"""The frozen web: what a run's searches answered, as one artefact that can be verified, passed on and replayed."""
