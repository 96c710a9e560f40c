package refresher

import "time"

// budget bounds exchanges: 12 an hour or 3 a lifetime, whichever is more
// (rotation.md 7.2). It starts full.
type budget struct {
	used float64
	at   Instant
}

const budgetSize = 12

func (m *machine) budgetRate() float64 { // per second
	rate := budgetSize / time.Hour.Seconds()
	if m.sched.life > 0 {
		rate = max(rate, 3/m.sched.life.Seconds())
	}
	return rate
}

// afford is when the budget allows the next exchange.
func (m *machine) afford() Instant {
	used := max(0, m.budget.used-m.budgetRate()*m.now.Sub(m.budget.at).Seconds())
	if used <= budgetSize-1 {
		return m.now
	}
	return m.now.Add(time.Duration((used - budgetSize + 1) / m.budgetRate() * float64(time.Second)))
}

func (m *machine) spend() {
	used := max(0, m.budget.used-m.budgetRate()*m.now.Sub(m.budget.at).Seconds())
	m.budget = budget{used: min(used+1, budgetSize), at: m.now}
}
