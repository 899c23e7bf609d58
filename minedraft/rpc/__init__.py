"""The gRPC edges: codecs are the only readers and writers of protobuf fields."""
