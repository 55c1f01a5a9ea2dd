"""Where the bytes of uploaded files and of batches' answers lie: in a folder of this machine, or in object storage."""
