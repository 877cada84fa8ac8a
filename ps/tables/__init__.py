"""Tables: rows by 64-bit keys, born by the first push that touches them."""
