"""The catalogue of bad inputs: 84 rows, what each gets, and that it changes nothing.

A test of row 7 is called ``test_row_07_...``. ``ELSEWHERE`` names tests that were there before.
"""
