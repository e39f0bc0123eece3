"""Poses of particles against a given map: global search, then local refinement."""
