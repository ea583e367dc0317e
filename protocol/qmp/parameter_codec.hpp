// SPDX-License-Identifier: Apache-2.0
//
// The hooks by which decode.hpp and encode.hpp find the parameter table: its types are rows, not members().
#pragma once

#include "protocol/qmp/parameters.hpp"

namespace migrationd::qmp {

class DecodeState;

bool decode_object(DecodeState& state, const Json& object, ParameterPatch& out);
OrderedJson encode_object(const MigrationParameters& parameters);

}  // namespace migrationd::qmp
