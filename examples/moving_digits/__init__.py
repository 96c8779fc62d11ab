"""Moving digits: clips made from scikit-learn's handwriting, and a video model of them that is trained from nothing."""
