"""The comparison of mode pearl with others for few requests in flight."""
