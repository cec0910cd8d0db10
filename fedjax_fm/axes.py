"""The axes of a mesh, by name."""

CLIENTS = "clients"  # whose devices compute different clients
MODEL = "model"  # whose devices each have a part of the backbone
