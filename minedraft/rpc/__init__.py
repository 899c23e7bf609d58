"""The gRPC edges: codecs are the only readers and writers of protobuf fields."""

import os

# gRPC's own log says of every peer that goes away what our errors say already. Read when gRPC starts.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
