module tandemfs

go 1.26.0
