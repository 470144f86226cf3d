-- Every file of the export is read again and compared with the size and hash in its manifest.
SELECT fault FROM file_faults
