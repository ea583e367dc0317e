// SPDX-License-Identifier: Apache-2.0
#include "base/result.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <ostream>
#include <system_error>

namespace migrationd {

Error Error::from_errno(std::string what, int err) {
  Error error(ErrorKind::io, fmt::format("{}: {}", what, std::generic_category().message(err)));
  error.errno_ = err;
  return error;
}

Error Error::with(std::string_view context) && {
  text_ = fmt::format("{}: {}", context, text_);
  return std::move(*this);
}

std::ostream& operator<<(std::ostream& out, const Error& error) { return out << error.text(); }

void throw_exception_from_error(const Error& error, const boost::source_location& where) {
  fmt::print(stderr, "{}:{}: value() of a failed Result: {}\n", where.file_name(), where.line(), error.text());
  std::abort();
}

std::string printable(std::string_view text, std::size_t max) {
  std::string out;
  for (const char c : text.substr(0, max)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte <= 0x7e) {
      out.push_back(c);
    } else {
      out += fmt::format("\\x{:02x}", byte);
    }
  }
  if (text.size() > max) out += "...";
  return out;
}

std::string hex(std::uint64_t value) { return fmt::format("{:#x}", value); }

}  // namespace migrationd
