"""Answering requests for samples over HTTP, and handing the models on."""
