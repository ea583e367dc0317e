// SPDX-License-Identifier: Apache-2.0
//
// What can be proved without a daemon: that nothing of a processor is lost when its registers go to another VM, and
// that KVM's dirty log has every page that the guest wrote.
#pragma once

#include "guest/examples/kvm/machine.hpp"

namespace kvm_guest {

// Lets a running machine live for so long, in one VM after the other. Returns the process's exit status; says on
// standard error what is wrong.
int prove_standalone(Machine& machine, unsigned seconds);

}  // namespace kvm_guest
