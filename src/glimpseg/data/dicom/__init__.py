"""DICOM input and output: find and read MR series; write segmentations (SEG) and structured reports (SR)."""
