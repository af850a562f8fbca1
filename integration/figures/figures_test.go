package figures

import "testing"

func TestTheMedianOfAnEvenNumberOfValuesLiesBetweenTheMiddleTwo(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 100, 2}, 3},
	} {
		if got := Median(c.values); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.values, got, c.want)
		}
	}
}

func TestAQuantileIsOneOfTheValues(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i
	}
	for _, c := range []struct {
		values []int
		q      float64
		want   int
	}{
		{[]int{7}, 0, 7}, {[]int{7}, 0.99, 7}, {[]int{7}, 1, 7},
		{hundred, 0, 1}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100},
		{[]int{3, 1, 2}, 0.5, 2}, {[]int{3, 1, 2}, 0.99, 3},
	} {
		if got := Quantile(c.values, c.q); got != c.want {
			t.Errorf("the quantile %v of %v is %v, want %v", c.q, c.values, got, c.want)
		}
	}
}
