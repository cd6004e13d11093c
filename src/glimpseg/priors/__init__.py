"""What is supposed of a study's labels before a method learns from it: a label map for each sequence by itself."""
