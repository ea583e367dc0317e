// SPDX-License-Identifier: Apache-2.0
// qmp-reference: prints the reference page of the control socket; docs/meson.build runs it.
#include "protocol/qmp/reference.hpp"

#include <iostream>

int main() {
  std::cout << migrationd::qmp::make_reference();
  return std::cout.good() ? 0 : 1;
}
