package tpm

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// EndorsementTemplate is one of those of the EK Credential Profile.
type EndorsementTemplate struct {
	Certificate uint32
	Template    tpm2.TPMTPublic
	Slow        bool
}

// EndorsementTemplates gives all that a TPM may have.
func EndorsementTemplates() map[string]EndorsementTemplate {
	all := map[string]EndorsementTemplate{}
	for _, k := range endorsementKinds {
		slow := k.certificate == ekHighRSA3072
		all[fmt.Sprintf("%08x", k.certificate)] = EndorsementTemplate{k.certificate, k.template(), slow}
	}
	return all
}

// HighPolicy is the policy of the high range's templates.
func HighPolicy(alg tpm2.TPMAlgID) []byte {
	return high(tpm2.TPMAlgECC, alg, tpm2.TPMUPublicParms{}, tpm2.TPMUPublicID{}).AuthPolicy.Buffer
}
