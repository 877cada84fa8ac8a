"""Generated from protos/paramserver/v1; never edited (make protos)."""
