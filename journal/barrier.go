package journal

// Barrier waits until every operation that is between Enter and Leave at the call has left.
func (j *Journal) Barrier() {
	j.gate.Lock()
	defer j.gate.Unlock()
}
