// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/error.hpp"

#include <cstdlib>
#include <iostream>

namespace migrationd::qmp {

std::ostream& operator<<(std::ostream& out, const QmpError& error) { return out << error.text(); }

void throw_exception_from_error(const QmpError& error, const boost::source_location& where) {
  std::cerr << "migrationd: value() of a failed result: " << error.text() << " at " << where << '\n';
  std::abort();
}

}  // namespace migrationd::qmp
