"""Images and video: STARFlow and STARFlow-V on the engine of nflib."""
