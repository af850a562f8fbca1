package wire

// slack is what a fuzz target may take whatever it is given: the runtime's own needs are counted too.
const slack = 1 << 20
