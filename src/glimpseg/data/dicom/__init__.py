"""DICOM in and out: series found and read, segmentations and measurements written in their geometry."""
